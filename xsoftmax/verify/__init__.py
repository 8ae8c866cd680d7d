"""How we know: every verb on every case, against the exact oracle, under the accuracy contract."""
