"""Collecting rollouts: behaviour policies, and the workers that play them."""
