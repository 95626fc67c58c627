"""The page's own words, English and Chinese.  Words from a run's files are never translated."""

from hasten.report.frame import Language, Words

WORDS: dict[str, Words] = {
    # head
    "report": ("Training report", "训练报告"),
    "comparison": ("Comparison of runs", "训练对比"),
    "parameters": ("parameters", "参数"),
    "language": ("Language", "语言"),
    "not_complete": (
        "This run was stopped before its end; resuming it goes on from the last checkpoint.",
        "此次训练提前停止；恢复后将从最后的检查点继续。",
    ),
    # key figures
    "bits_per_byte": ("Bits per byte", "每字节比特数"),
    "accuracy": ("Next-token accuracy", "下一词元准确率"),
    "perplexity": ("Perplexity", "困惑度"),
    "masked_accuracy": ("Hidden tokens found", "掩码词元准确率"),
    "unigram": ("Commonest token", "最常见词元"),
    "bigram": ("Guess from the left neighbour", "按左邻词元猜测"),
    "both_neighbours": ("Guess from both neighbours", "按左右邻词元猜测"),
    "masked_intro": (
        "Share of hidden tokens that are found; longer is better. Guesses are the commonest token of the"
        " training text between the true neighbours, which the model may not see.",
        "被掩盖词元的命中率，越长越好。猜测取训练文本中在真实邻词元之间最常见的词元，而模型未必看得到这些邻词元。",
    ),
    "hidden": ("hidden:", "掩盖："),
    "bleu": ("BLEU", "BLEU 分数"),
    "chrf": ("chrF", "chrF 分数"),
    "translations": ("Translations", "译文"),
    "translation_intro": (
        "Sources that took no part in training, translated by beam search; ± is half of the 95% interval over"
        " sentences. Scores compare only where signatures are equal.",
        "源句未参与训练，用集束搜索翻译；± 为按句自助法 95% 区间的一半。仅签名相同的分数可比较。",
    ),
    "sentences": ("Sentences", "句数"),
    "beams": ("Beams", "集束宽度"),
    "signature": ("Signature", "签名"),
    "cut_off": ("Cut off", "被截断"),
    "reference_text": ("reference", "参考译文"),
    "validation_loss": ("Validation loss", "验证损失"),
    "best_validation_loss": ("Best validation loss", "最佳验证损失"),
    "train_loss": ("Training loss", "训练损失"),
    "throughput": ("Throughput", "吞吐量"),
    "mfu": ("Model FLOPs utilisation", "模型算力利用率"),
    "parse_rate": ("Python that parses", "可解析的 Python"),
    "time": ("Time", "用时"),
    "on_test": ("on test text", "测试文本"),
    "on_validation": ("on validation text", "验证文本"),
    "median": ("median", "中位数"),
    "nats": ("nats per token", "奈特/词元"),
    "tokens_per_second": ("tokens per second", "词元/秒"),
    "of_peak": ("of the measured peak", "占实测峰值"),
    "less_than_lzma": ("{} fewer bits than LZMA", "比 LZMA 省 {}"),
    "more_than_lzma": ("{} more bits than LZMA", "比 LZMA 多 {}"),
    "authors": ("the authors' own code", "原作者代码"),
    # charts
    "curves": ("Curves", "曲线"),
    "loss": ("Loss", "损失"),
    "learning_rate": ("Learning rate", "学习率"),
    "grad_norm": ("Gradient norm", "梯度范数"),
    "before_clipping": ("before clipping", "裁剪前"),
    "against": ("Against", "横轴"),
    "step": ("steps", "步数"),
    "tokens": ("tokens", "词元"),
    "seconds": ("seconds", "秒"),
    "minutes": ("minutes", "分钟"),
    "hours": ("hours", "小时"),
    "by_time": ("time", "时间"),
    "logarithmic": ("logarithmic", "对数"),
    "smoothed": (
        "Bold: moving mean over a fiftieth of the curve. Faint: as logged.",
        "粗线：窗口为全程五十分之一的滑动平均；淡线：原始记录。",
    ),
    "mean_curve": (
        "Training loss as a moving mean over a fiftieth of each curve; dots are validation.",
        "训练损失为窗口五十分之一的滑动平均；圆点为验证损失。",
    ),
    # where the time went
    "times": ("Where the time went", "时间花在哪里"),
    "start": ("start-up and compiling", "启动与编译"),
    "data_wait": ("waiting for data", "等待数据"),
    "forward_backward": ("forward and backward", "前向与反向"),
    "optimizer": ("clipping and optimizer", "裁剪与优化器"),
    "looks": ("validation and looks", "验证与查看"),
    "checkpoints": ("checkpoints", "检查点"),
    "rest": ("the rest", "其余"),
    "peak_memory": ("Peak memory:", "峰值内存："),
    # tests
    "test": ("Test", "测试"),
    "test_intro": (
        "Measured on documents that took no part in training.",
        "在未参与训练的文档上测得。",
    ),
    "held_out_loss": ("Test loss", "测试损失"),
    "lzma_stream": ("LZMA, one stream", "LZMA，整体压缩"),
    "lzma_each": ("LZMA, each file", "LZMA，逐个压缩"),
    "lower_is_better": ("Bits per byte; shorter is better", "每字节比特数；越短越好"),
    "stderr": ("standard error over documents", "按文档计的标准误"),
    "documents": ("Documents", "文档"),
    "bytes": ("Bytes", "字节"),
    "tokens_title": ("Tokens", "词元"),
    "checkpoint": ("Checkpoint", "检查点"),
    "source": ("Source", "来源"),
    "sampled": ("Drawn from a larger number of documents:", "抽样，文档总数："),
    # samples
    "samples": ("Samples", "样例"),
    "samples_intro": ("The prompt is grey, the model's text dark.", "灰色为提示，深色为模型所写。"),
    "seed": ("seed", "种子"),
    "ended_by": ("ended by", "结束原因"),
    # comparison
    "runs": ("Runs", "训练"),
    "steps_title": ("Steps", "步数"),
    "differences": ("What differs between the recipes", "配方的不同之处"),
    "no_difference": ("The recipes are equal.", "配方相同。"),
    "setting": ("Setting", "设置"),
    # data
    "data": ("Data", "数据"),
    "split": ("Split", "划分"),
    "cleaning": ("Cleaning", "清洗"),
    "rule": ("Rule", "规则"),
    "dropped": ("Dropped", "剔除"),
    "kept": ("kept:", "保留："),
    "read": ("Documents read:", "读入文档："),
    "examples": ("Examples", "例子"),
    "bad_rows": ("Unreadable rows", "无法读取的行"),
    "nothing_dropped": ("No rule dropped a document.", "没有规则剔除任何文档。"),
    # reliability
    "quarantined": ("Batches whose loss or gradient was not finite", "损失或梯度非有限值的批次"),
    "skipped": ("Skipped steps", "跳过的步数"),
    "rollbacks": ("Returns to a checkpoint", "回退次数"),
    "reliability": ("Reliability", "可靠性"),
    # recipe and environment
    "recipe": ("Recipe", "配方"),
    "recipe_intro": (
        "Everything about this run; it is a valid recipe itself.",
        "此次训练的全部设置；本身即为有效配方。",
    ),
    "environment": ("Environment", "环境"),
    "footer": (
        "Made by hasten from this run's files alone. The page needs no network.",
        "由 hasten 仅据此次训练的文件生成；页面无需网络。",
    ),
}


def word(key: str, language: Language) -> str:
    """The word for `key`; a key that is not in the list is a mistake of ours."""
    return WORDS[key][language == "zh"]
