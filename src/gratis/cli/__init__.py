"""The command line: parse, call, print. Heavy imports wait until the arguments are understood."""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from gratis.cli.arguments import parser
from gratis.cli.judging import evaluate, export, pictures, report, verify
from gratis.cli.kinds import UNUSABLE
from gratis.cli.process import prepare
from gratis.cli.training import compare, list_recipes, lr_range, reproduce, train

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 for a failed run, 2 for unusable
    input, 130 for Ctrl-C.
    """
    options = parser(COMMANDS).parse_args(arguments)
    prepare()
    # python -m finds a user's module:function in the working directory; so shall the script
    if os.getcwd() not in sys.path:
        sys.path.insert(1, os.getcwd())
    # photographs with damaged EXIF, as ImageNet has, are whole; nobody here reads EXIF
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
    try:
        return int(options.call(options))
    except KeyboardInterrupt:
        how = "nothing was changed"
        if options.call in (train, compare):
            how = "go on with the same command and --resume, or without where no run had begun"
        if options.call in (reproduce, evaluate, verify, pictures):
            how = "go on with the same command"
        print(f"gratis: interrupted; {how}", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, ArithmeticError, ImportError, RuntimeError) as error:
        if options.debug:
            traceback.print_exc()
        print(f"gratis: {' '.join(str(error).split())}", file=sys.stderr)
        return UNUSABLE if isinstance(error, ValueError | OSError) else 1


COMMANDS = {
    "train": train,
    "compare": compare,
    "evaluate": evaluate,
    "verify": verify,
    "pictures": pictures,
    "report": report,
    "export": export,
    "lr-range": lr_range,
    "reproduce": reproduce,
    "recipes": list_recipes,
}
