"""The paper's measures of one model: equations 6 to 14, figures 3 to 5, table 6."""
