"""The only way out for anything learned from a site's data: policy, floors, privacy ledger, and a log that people can read."""
