"""The grammar of the language, `rnn.lark`."""
