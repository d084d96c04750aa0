"""A base model beside its tuned twin: equations 15 and 16, tables 1 and 2, figure 6."""
