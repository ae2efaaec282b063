"""The use cases of the hub: releases, enrolments, directives, reports, rollouts; each a thin shell around a rule."""
