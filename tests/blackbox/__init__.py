"""Black-box tests for a CNI plugin: any binary, told apart only by its template. See README.md."""
