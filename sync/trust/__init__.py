"""What makes something trusted: TUF metadata, signed envelopes, and the one verifier for every transport."""
