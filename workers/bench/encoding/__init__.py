"""``penstock bench encode``: one corpus becomes vectors, by penstock and by ways around sentence-transformers."""
