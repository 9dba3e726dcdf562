"""From logits to decisions.

Each module holds one kind of state that a model stores, fits it on validation images (`fit`) and uses it (`apply`):
calibration, threshold, prediction sets, OOD detector, intended use. `decisions.py` puts them together.
"""
