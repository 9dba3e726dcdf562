"""A trained model goes where it is used."""
