"""What a bundle finds in whole documents; without Ray and torch, so that serving and edge say the same."""
