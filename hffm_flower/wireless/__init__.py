"""Radio links priced in seconds and joules. SI units inside: W, Hz, bit, m, s, J."""
