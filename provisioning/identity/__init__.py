"""Certificates and enrolment: the device CA, one-time codes, a spoke's identity, bearer tokens."""
