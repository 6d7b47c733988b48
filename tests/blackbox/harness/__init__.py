"""What the black-box tests stand on: namespaces, worlds, calls, result shapes. None of it imports the product."""
