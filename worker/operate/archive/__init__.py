"""The log of attempts as files: JSON Lines out and back in, and xAPI statements out."""
