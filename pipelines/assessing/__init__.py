"""What a bundle finds in whole documents, pictures and scans; without Ray and torch, so that serving and edge
say the same, and evaluation with them.
"""
