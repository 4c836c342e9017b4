"""Recordings of events: readers of the published file layouts, and batches of them binned into counts."""
