"""The seeds that recipes, requests and samplers take."""

LARGEST_SEED = (1 << 32) - 1  # torch's generator takes more and counts it modulo 2^32: two seeds, one result
