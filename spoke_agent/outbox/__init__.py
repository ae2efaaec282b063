"""The only way out for what is learned from a site's data: policy, floors, ledger and a log that people can read."""
