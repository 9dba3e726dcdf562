"""The reading room: a service that reads radiographs for people and programs, and remembers what they thought of it."""
