"""How PlatformIO builds for an emulated board, and runs the result: every flag comes from the board's JSON."""

from pathlib import Path

from SCons.Script import AlwaysBuild, Default, DefaultEnvironment

env = DefaultEnvironment()
board = env.BoardConfig()
support = str(Path(env.PioPlatform().get_dir()) / "support")
prefix = board.get("build.toolchain")
machine = board.get("build.cflags")

env.Replace(
    AR=prefix + "gcc-ar",
    AS=prefix + "gcc",
    CC=prefix + "gcc",
    CXX=prefix + "g++",
    OBJCOPY=prefix + "objcopy",
    RANLIB=prefix + "gcc-ranlib",
    SIZETOOL=prefix + "size",
    ARFLAGS=["rc"],
    PROGNAME="firmware",
    PROGSUFFIX=".elf",
    SIZEPROGREGEXP=r"^(?:\.vectors|\.ft_model|\.ft_selftest|\.ft_labels|\.text|\.rodata|\.data)\s+(\d+).*",
    SIZEDATAREGEXP=r"^(?:\.stack|\.data|\.ft_arena|\.bss)\s+(\d+).*",
    SIZECHECKCMD="$SIZETOOL -A -d $SOURCES",
    SIZEPRINTCMD="$SIZETOOL -A -d $SOURCES",
    LDSCRIPT_PATH=str(Path(support) / board.get("build.linker_script")),
)
env.Append(
    CCFLAGS=machine + board.get("build.compile_flags"),
    CFLAGS=board.get("build.c_flags"),
    CXXFLAGS=board.get("build.cxx_flags"),
    CPPPATH=[support, str(Path("$PROJECT_DIR") / "lib" / "fedtiny" / "include")],
    LINKFLAGS=machine
    + board.get("build.link_flags")
    + ["-Xlinker", "-Map=" + str(Path("$BUILD_DIR") / "firmware.map")],
)
env.BuildSources(str(Path("$BUILD_DIR") / "support"), support)

elf = env.BuildProgram()
Default([env.Alias("buildprog", elf, elf)])
AlwaysBuild(env.Alias("nobuild", elf))
env.AddPlatformTarget("size", elf, env.VerboseAction("$SIZEPRINTCMD", "Calculating size $SOURCE"), "Program Size")
command = " ".join([*board.get("debug.emulator"), "$SOURCE"])
env.AddPlatformTarget("upload", elf, env.VerboseAction(command, "Running $SOURCE in the emulator"), "Run")
