"""The ledger's own words, English and Chinese; what a technique is called stands in its entry."""

from typing import Any

from hasten.ledger.techniques import TECHNIQUES
from hasten.report.frame import Words

WORDS: dict[str, Words] = {
    "language": ("Language", "语言"),
    "ledger": ("Speed ledger", "速度账本"),
    "headline": ("What each technique is worth here", "每项技术在本机的价值"),
    "threads": ("threads", "线程"),
    "minutes": ("minutes", "分钟"),
    "full": ("everything", "全部启用"),
    "plain": ("none of them", "全部停用"),
    "stair": ("up to {}", "加到：{}"),
    "without": ("without {}", "去掉：{}"),
    "with": ("with {}", "加上：{}"),
    # key figures
    "full_pace": ("Everything on", "全部启用"),
    "against_plain": ("Against none of them", "相对全部停用"),
    "faster": ("the tokens per second", "每秒词元数之比"),
    "sooner": ("Sooner at the same loss", "达到同样损失更快"),
    "sooner_note": ("the loss where “none of them” ends", "以“全部停用”的最终损失为准"),
    "peak_bf16": ("Matrix peak, bf16", "矩阵峰值 bf16"),
    "peak_fp32": ("Matrix peak, fp32", "矩阵峰值 fp32"),
    "peak_int8": ("Matrix peak, int8", "矩阵峰值 int8"),
    "measured_here": ("measured just before", "测量前实测"),
    "tokens_per_second": ("tokens per second", "词元/秒"),
    # picture
    "slower_title": (
        "Time for the same tokens, relative to everything on",
        "同样词元数所需时间（全部启用 = 1）",
    ),
    "loss_title": (
        "Time to the same loss, relative to everything on",
        "达到同样损失所需时间（全部启用 = 1）",
    ),
    "bars_note": (
        "A bar to the right of 1×: slower without it. The thin line spans the repeats.",
        "条形在 1× 右侧：去掉后更慢。细线为各次重复的范围。",
    ),
    "loss_note": (
        "The loss is the one that “none of them” ends with in each repeat.",
        "目标损失为每次重复中“全部停用”组的最终验证损失。",
    ),
    # table
    "table": ("The ledger", "账本"),
    "technique": ("Technique", "技术"),
    "pace": ("Tokens/s", "词元/秒"),
    "time": ("Time, same tokens", "同样词元用时"),
    "loss_time": ("Time, same loss", "同样损失用时"),
    "memory": ("Peak memory", "峰值内存"),
    "repeats": ("Repeats", "重复"),
    "staircase": ("One at a time", "逐项加上"),
    # what could not be had
    "absent": ("Not to be had here", "本机不可用"),
    "failed": ("Failed here", "运行失败"),
    "none_absent": ("Every technique could be measured.", "所有技术均已测量。"),
    "late": (
        "did not come to its end in the time; give more bench.minutes",
        "时间内未完成；请增大 bench.minutes",
    ),
    # machine
    "machine": ("The machine", "机器"),
    "copy": ("memory, copy", "内存复制"),
    "read": ("memory, read", "内存读取"),
    "one_thread": ("one thread", "单线程"),
    "all_threads": ("all threads", "全部线程"),
    "cores": ("cores", "核心"),
    "others": ("cores used by others", "其他进程占用的核心"),
    "busy": (
        "Others used {} cores during a trial: figures on a busy machine mean little.",
        "测量期间其他进程占用了 {} 个核心：繁忙机器上的数字意义不大。",
    ),
    # method
    "method": ("How it was measured", "测量方法"),
    "method_process": (
        "Each trial is a training in a process of its own. All arms take turns, every other round backwards;"
        " an arm is compared with the full set of the same round, and the median and range of those ratios"
        " are shown. Tokens per second is the median over the steps of a trial after its first two.",
        "每次试验是独立进程中的一次训练。各组轮流进行，隔轮反序；每组只与同轮的全部启用组相比，给出比值的中位数与范围。"
        "每秒词元数为一次试验中前两步之后各步的中位数。",
    ),
    "method_loss": (
        "Techniques that change what a step learns are trained for a fixed time and compared by the seconds"
        " of training steps until the loss where “none of them” ends, interpolated between validations;"
        " “>” marks arms that did not get there. All others learn the same from the same"
        " steps: their time to a loss is their time for the same tokens.",
        "会改变学习效果的技术按固定时长训练，比较达到“全部停用”组最终验证损失时训练步的累计用时（在两次验证之间线性插值）；"
        "“>”表示未达到。其余技术每步学到的相同：达到同样损失的用时之比即同样词元的用时之比。",
    ),
    "method_rates": (
        "AdamW runs at its default learning rate here, which nobody has tuned for this model.",
        "这里的 AdamW 使用默认学习率，未针对此模型调节。",
    ),
    "recipe": ("Recipe", "配方"),
    "environment": ("Environment", "环境"),
    "footer": (
        "Made by hasten bench from ledger.json beside it. The page needs no network.",
        "由 hasten bench 根据同目录的 ledger.json 生成；页面无需网络。",
    ),
}


def words(key: str, *values: str) -> Words:
    """The words of `key` in both languages; `values` stand where they have `{}`."""
    english, chinese = (text.format(*values) for text in WORDS[key])
    return english, chinese


def arm_words(row: dict[str, Any]) -> Words:
    """What an arm is called."""
    if row["technique"] is None:
        return words(row["kind"])
    english, chinese = TECHNIQUES[row["technique"]].title
    pattern = WORDS[row["kind"]]
    return pattern[0].format(english), pattern[1].format(chinese)
