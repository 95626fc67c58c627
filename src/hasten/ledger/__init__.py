"""The speed ledger: what each technique is worth on this machine."""
