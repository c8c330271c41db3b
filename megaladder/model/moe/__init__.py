"""Mixture of experts: its numbers, router, layer and balance."""
