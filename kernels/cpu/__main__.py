"""Compiles the step for this processor ahead of its first use: `python -m kernels.cpu`."""

from kernels.cpu.isa import NoVectors, host


def main() -> None:
    try:
        name = host().name
        from kernels.cpu.entry import prepared
    except (NoVectors, ImportError) as error:
        print(f"no compiled step here, torch serves instead: {error}")
        return
    _, seconds = prepared()
    print(f"the compiled step ({name}) is ready, after {seconds:.1f} s")


if __name__ == "__main__":
    main()
