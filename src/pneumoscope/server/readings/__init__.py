"""Readings of people: blind, repeated, and of known truth."""
