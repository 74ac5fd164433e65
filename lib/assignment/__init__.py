"""Assignment of cases to annotators: leases, reader studies and their consensus."""
