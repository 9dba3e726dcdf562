"""How the tables of the DICOM node get from each revision to the next; run by `server.schema`."""
