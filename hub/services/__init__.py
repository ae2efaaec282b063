"""The hub's dealings with its spokes: releases, enrolment, directives, reports, rollouts; each a thin shell around a rule."""
