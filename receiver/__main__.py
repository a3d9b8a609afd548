"""`python -m receiver`, and what the command `receiver` runs."""

from __future__ import annotations


def main() -> None:
    from receiver.cli.root import root

    root.main(prog_name="receiver")


if __name__ == "__main__":
    main()
