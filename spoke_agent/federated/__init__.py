"""Takes part in federated sums: checks the question and this site's rules, and gives at most one masked answer."""
