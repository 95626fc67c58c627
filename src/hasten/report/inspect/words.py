"""The page's own words, English and Chinese."""

from hasten.report.frame import Words

WORDS: dict[str, Words] = {
    # head
    "attention": ("Attention", "注意力"),
    "language": ("Language", "语言"),
    "parameters": ("parameters", "参数"),
    "layers": ("layers", "层"),
    "heads": ("heads a layer", "头/层"),
    "tokens": ("tokens", "词元"),
    "written": (
        "No target was given: the model wrote this one, its likeliest token each time.",
        "未给出目标文本：以下由模型生成，每步取最可能的词元。",
    ),
    # attention
    "view": ("Attention of", "注意力："),
    "decoder": ("decoder", "解码器"),
    "encoder": ("encoder", "编码器"),
    "cross": ("decoder → source", "解码器 → 源文"),
    "direction": ("A token", "词元"),
    "looks_at": ("looks at", "看向谁"),
    "seen_by": ("is looked at by", "被谁看"),
    "how": (
        "Point at a token, or tap it, or move with the arrow keys: the stronger another is coloured, the more"
        " of the attention goes there. Choose a head below; “mean” stands for all heads of a layer, or of all"
        " layers.",
        "指向、点按词元，或用方向键移动：其他词元着色越浓，分得的注意力越多。下方选择注意力头；“均值”为一层或所有层的平均。",
    ),
    "writes": ("Written", "所写"),
    "reads": ("Read", "所读"),
    "grid": ("Layers downwards, heads across, counted from 0", "自上而下为层，从左到右为头，均从 0 计"),
    "mean": ("mean", "均值"),
    "head": ("Head", "头"),
    "matrix": (
        "Each row is a token that looks, each column one looked at.",
        "每行为看的词元，每列为被看的词元。",
    ),
    "rounding": (
        "The page holds each probability p to within √p / 255: 0.4 points at 100%, 0.04 at 1%. The shade"
        " grows with √p. The figures are from the exact numbers.",
        "页面中每个概率 p 的误差不超过 √p / 255：100% 处为 0.4 个百分点，1% 处为 0.04 个。"
        "着色浓淡随 √p 变化。数字由精确值算出。",
    ),
    "no_script": (
        "This picture needs a browser of 2023 or later with scripts on; the tables below do not.",
        "此图需要 2023 年以后的浏览器并启用脚本；下方表格不需要。",
    ),
    # figures
    "figures": ("The heads in figures", "各头的数字"),
    "figures_note": (
        "Means over the tokens but the first. Click a row to see the head.",
        "除首个词元外各词元的均值。点击一行可查看该头。",
    ),
    "figures_note_cross": (
        "Means over all tokens. Click a row to see the head.",
        "各词元的均值。点击一行可查看该头。",
    ),
    "entropy": ("Spread, bits", "分散度（比特）"),
    "distance": ("Distance", "距离"),
    "first": ("First token", "首个词元"),
    "last": ("Last token", "末个词元"),
    "previous": ("Token before", "前一词元"),
    "own": ("Itself", "自身"),
    "following": ("Token after", "后一词元"),
    "induction": ("Induction", "归纳"),
    "about_entropy": ("0: one token only; log₂ n: n tokens alike", "0：只看一个词元；log₂ n：均匀看 n 个"),
    "about_distance": ("how far away it looks on average, in tokens", "平均看多远（词元数）"),
    "about_induction": (
        "share on what came after an earlier token like this one",
        "看向此前相同词元之后那个词元的份额",
    ),
    "all_heads": ("All heads", "所有头"),
    # expectations
    "expected": ("What the model expected", "模型的预期"),
    "next_note": (
        "Surprise is −log₂ of the probability that the model gave to the token that came; rank 1 was its"
        " favourite.",
        "意外度为模型给实际词元的概率的 −log₂；名次 1 即模型的首选。",
    ),
    "masked_note": (
        "What the model reads into each [MASK].",
        "模型对每个 [MASK] 的猜测。",
    ),
    "each_note": (
        "Each token was masked in turn; surprise is −log₂ of the probability that the model gave to it.",
        "依次遮盖每个词元；意外度为模型给该词元的概率的 −log₂。",
    ),
    "no_expectation": (
        "Nothing was masked: write [MASK] in the text, or mask=each.",
        "没有遮盖任何词元：可在文本中写 [MASK]，或使用 mask=each。",
    ),
    "no_words": (
        "This model has no head over its vocabulary, so it expects no token.",
        "此模型没有词表输出头，因此不预测词元。",
    ),
    "mean_surprise": ("Mean surprise", "平均意外度"),
    "bits_per_token": ("bits per token", "比特/词元"),
    "favourites": ("Its favourite came", "首选命中"),
    "of_tokens": ("of the time", "的词元"),
    "place": ("Place", "位置"),
    "came": ("Came", "实际"),
    "surprise": ("Surprise, bits", "意外度（比特）"),
    "rank": ("Rank", "名次"),
    "candidates": ("Expected", "预期"),
    "end": ("what comes next", "接下来"),
    "signs": (
        "· is a blank, ⏎ a line end, ⇥ a tab; \\x.. is a byte of a character that is cut in two.",
        "· 为空格，⏎ 为换行，⇥ 为制表符；\\x.. 为被切开的字符的一个字节。",
    ),
    "footer": (
        "Made by hasten inspect from one forward pass. The page needs no network.",
        "由 hasten inspect 据一次前向计算生成；页面无需网络。",
    ),
}
