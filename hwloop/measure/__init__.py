"""The host's side of a target: sessions, tables, measurements."""
