"""Bulk restoration: folders, globs and object stores, over one machine or a cluster, with Ray Data."""
