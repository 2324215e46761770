"""Nearest-neighbour search: exact, by faiss, by Milvus."""
