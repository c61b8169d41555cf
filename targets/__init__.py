"""Targets as data, and one package per runtime."""
