"""How the tables of the reading room get from each revision to the next; run by `server.schema`."""
