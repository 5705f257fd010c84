//! The sources of verfs as tokens: what the compiler reads, without comments and line breaks in the way.
#![allow(dead_code)] // each test file uses a part of it
#![allow(clippy::unwrap_used)]

use proc_macro2::{Delimiter, Span, TokenStream, TokenTree};
use std::fs;
use std::ops::Index;
use std::path::Path;

/// The layers, left to right: a file uses only what stands to its right. What stands in one place may use each other; a
/// layer need not be there yet.
pub const LAYERS: [&[&str]; 14] = [
    &["main"],
    &["cli"],
    &["fleet"],
    &["keeper"],
    &["worker"],
    &["control"],
    &["fuse"],
    &["switch"],
    &["fs"],
    &["store"],
    &["protocol"],
    &["tree"],
    &["error", "sys", "fault"],
    &["lib"],
];

/// A file of src/.
pub struct Source {
    /// From the root of the repository: `src/store/mod.rs`.
    pub path: String,
    pub text: String,
    tokens: Vec<Token>,
}

#[derive(Clone, Debug)]
pub struct Token {
    pub kind: Kind,
    /// A word without `r#`, a literal as it is written, or one sign; brackets are signs too.
    pub text: String,
    pub line: usize,
    /// How many brackets are open around it.
    pub depth: usize,
    /// How many of these open a module.
    pub modules: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Word,
    Literal,
    Sign,
}

impl Source {
    /// Every file of src/, in the order of the paths.
    pub fn all() -> Vec<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut dirs = vec![root.join("src")];
        let mut found = Vec::new();
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else if path.extension().is_some_and(|end| end == "rs") {
                    let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                    found.push(Self::new(name, fs::read_to_string(&path).unwrap()));
                }
            }
        }
        found.sort_by(|one, other| one.path.cmp(&other.path));
        assert!(found.len() > 40, "the sources are there: {}", found.len());
        found
    }

    pub fn new(path: &str, text: impl Into<String>) -> Self {
        let text = text.into();
        let stream = text.parse().unwrap_or_else(|error| panic!("{path} is no Rust: {error}"));
        let mut reader = Reader::default();
        reader.read(stream);
        Self { path: path.to_owned(), text, tokens: reader.tokens }
    }

    /// The first name under src/: a layer, or `lib`.
    pub fn layer(&self) -> &str {
        self.module_path().next().unwrap_or_default().trim_end_matches(".rs")
    }

    /// How many modules lie between the root of the crate and the top of this file, the file's own counted.
    pub fn modules(&self) -> usize {
        self.module_path().filter(|part| !["mod.rs", "lib.rs", "main.rs"].contains(part)).count()
    }

    fn module_path(&self) -> impl Iterator<Item = &str> {
        self.path.strip_prefix("src/").expect("a file of src/").split('/')
    }

    pub fn tokens(&self) -> impl Iterator<Item = (usize, &Token)> {
        self.tokens.iter().enumerate()
    }

    /// The numbers of all words.
    pub fn words(&self) -> impl Iterator<Item = (usize, &str)> {
        self.tokens().filter(|(_, token)| token.kind == Kind::Word).map(|(at, token)| (at, token.text.as_str()))
    }

    /// The word there, if it is one.
    pub fn word(&self, at: usize) -> Option<&str> {
        self.tokens.get(at).filter(|token| token.kind == Kind::Word).map(|token| token.text.as_str())
    }

    /// Whether these signs stand there.
    pub fn signs(&self, at: usize, signs: &str) -> bool {
        let mut there = self.tokens[at.min(self.tokens.len())..].iter();
        signs
            .chars()
            .all(|sign| there.next().is_some_and(|token| token.kind == Kind::Sign && token.text.starts_with(sign)))
    }

    /// The bracket that closes the one there.
    pub fn closing(&self, open: usize) -> usize {
        let depth = self.tokens[open].depth;
        open + 1 + self.tokens[open + 1..].iter().position(|token| token.depth == depth).expect("brackets match")
    }
}

impl Index<usize> for Source {
    type Output = Token;

    fn index(&self, at: usize) -> &Token {
        &self.tokens[at]
    }
}

#[derive(Default)]
struct Reader {
    tokens: Vec<Token>,
    depth: usize,
    modules: usize,
    attributes: usize,
}

impl Reader {
    fn read(&mut self, stream: TokenStream) {
        let mut trees = stream.into_iter().peekable();
        while let Some(tree) = trees.next() {
            match tree {
                TokenTree::Group(group) => self.group(group),
                TokenTree::Ident(word) => {
                    self.push(Kind::Word, word.to_string().trim_start_matches("r#"), word.span());
                }
                TokenTree::Literal(literal) => self.literal(&literal.to_string(), literal.span()),
                TokenTree::Punct(sign) => {
                    // A comment for the documentation is an attribute by now; it names what it likes.
                    if sign.as_char() == '#' {
                        trees.next_if(|next| matches!(next, TokenTree::Punct(inner) if inner.as_char() == '!'));
                        if trees.next_if(is_doc).is_some() {
                            continue;
                        }
                    }
                    self.push(Kind::Sign, &sign.as_char().to_string(), sign.span());
                }
            }
        }
    }

    fn group(&mut self, group: proc_macro2::Group) {
        let (open, close) = match group.delimiter() {
            Delimiter::Brace => ("{", "}"),
            Delimiter::Bracket => ("[", "]"),
            Delimiter::Parenthesis => ("(", ")"),
            Delimiter::None => unreachable!("only macros make such groups"),
        };
        let is_word = |back: usize, text: Option<&str>| {
            let token = self.tokens.len().checked_sub(back).map(|at| &self.tokens[at]);
            token.is_some_and(|token| token.kind == Kind::Word && text.is_none_or(|text| token.text == text))
        };
        let module = usize::from(open == "{" && is_word(1, None) && is_word(2, Some("mod")));
        let attribute = usize::from(open == "[" && self.tokens.last().is_some_and(|token| token.text == "#"));
        self.push(Kind::Sign, open, group.span_open());
        self.depth += 1;
        self.modules += module;
        self.attributes += attribute;
        self.read(group.stream());
        self.attributes -= attribute;
        self.modules -= module;
        self.depth -= 1;
        self.push(Kind::Sign, close, group.span_close());
    }

    /// In an attribute a string may be a path: `#[serde(with = "crate::x")]`.
    fn literal(&mut self, text: &str, span: Span) {
        let path = text.trim_matches(['r', '#', '"']);
        match path.parse::<TokenStream>() {
            Ok(stream) if self.attributes > 0 && path.contains("::") => {
                let first = self.tokens.len();
                self.read(stream);
                self.tokens[first..].iter_mut().for_each(|token| token.line = span.start().line);
            }
            _ => self.push(Kind::Literal, text, span),
        }
    }

    fn push(&mut self, kind: Kind, text: &str, span: Span) {
        let line = span.start().line;
        self.tokens.push(Token { kind, text: text.to_owned(), line, depth: self.depth, modules: self.modules });
    }
}

fn is_doc(tree: &TokenTree) -> bool {
    let TokenTree::Group(group) = tree else { return false };
    let mut inside = group.stream().into_iter();
    let doc = matches!(inside.next(), Some(TokenTree::Ident(word)) if word == "doc");
    doc && matches!(inside.next(), Some(TokenTree::Punct(sign)) if sign.as_char() == '=')
}
