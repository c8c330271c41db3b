"""What lies beside a folder's contents: digests of its files, and what they were made by."""
