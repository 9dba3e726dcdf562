"""Answers in DICOM: results for the archive, and a node that receives images and sends results back."""
