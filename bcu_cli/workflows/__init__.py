"""One file a verb: what the command line and the public API do, without printing or exiting."""
