"""How the service has done: volume, drift, agreement."""
