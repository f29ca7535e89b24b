//! The part of Go's templates that people write behind `--format`.
//!
//! `{{.Field.Inner}}`, `{{json .}}`, `len`, `index`, `join`, `split`, `upper`, `lower`, `title`, `println`, `eq`, `ne`, `and`,
//! `or`, `not`, pipes, parentheses, variables, `if`/`else`, `range` and `with`. A field that is not there is an error that
//! names those that are. Recursion and output are bounded.

use std::{iter::Peekable, vec::IntoIter};

use serde_json::Value;

use super::{
    lex::{Piece, Token, pieces},
    value::{call, print, truth},
};

/// Deepest nesting of blocks and parentheses.
const MAX_DEPTH: usize = 32;
/// Most bytes that one template may print.
const MAX_OUTPUT: usize = 64 << 20;

/// What is wrong with a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the template given to --format: {0}")]
pub struct TemplateError(String);

pub(super) type Result<T> = std::result::Result<T, TemplateError>;

pub(super) fn fault<T>(text: impl Into<String>) -> Result<T> {
    Err(TemplateError(text.into()))
}

/// A template, ready to be used.
#[derive(Debug, Clone)]
pub struct Template(Vec<Node>);

#[derive(Debug, Clone)]
enum Node {
    Text(String),
    Print(Expr),
    Set(String, Expr),
    If { condition: Expr, then: Vec<Node>, otherwise: Vec<Node> },
    With { value: Expr, then: Vec<Node>, otherwise: Vec<Node> },
    Range { names: Vec<String>, over: Expr, each: Vec<Node>, otherwise: Vec<Node> },
}

#[derive(Debug, Clone)]
enum Expr {
    Dot,
    Variable(String),
    Literal(Value),
    Field(Box<Expr>, String),
    Call(String, Vec<Expr>),
}

impl Template {
    /// Reads a template. `\t` and `\n` as people type them in single quotes are a tab and a new line.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        let mut pieces = pieces(&text)?.into_iter();
        match block(&mut pieces, 0)? {
            (nodes, Ending::Text) => Ok(Self(nodes)),
            _ => fault("{{end}} or {{else}} closes nothing"),
        }
    }

    /// Fills it in.
    pub fn render(&self, data: &Value) -> Result<String> {
        let mut scope = Scope { variables: vec![("$".to_owned(), data.clone())], out: String::new() };
        scope.run(&self.0, data)?;
        Ok(scope.out)
    }
}

/// What closed a block.
enum Ending {
    Text,
    End,
    Else,
    ElseIf(Vec<Token>),
}

type Pieces = IntoIter<Piece>;
type Tokens = Peekable<IntoIter<Token>>;

fn block(pieces: &mut Pieces, depth: usize) -> Result<(Vec<Node>, Ending)> {
    if depth > MAX_DEPTH {
        return fault("its blocks are nested too deeply");
    }
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.next() {
        let mut action = match piece {
            Piece::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Piece::Action(action) => action,
        };
        let keyword = match action.first() {
            None => return fault("{{}} is empty"),
            Some(Token::Word(word)) => word.clone(),
            Some(_) => String::new(),
        };
        match keyword.as_str() {
            "end" => return Ok((nodes, Ending::End)),
            "else" if action.get(1) == Some(&Token::Word("if".to_owned())) => {
                return Ok((nodes, Ending::ElseIf(action.split_off(2))));
            }
            "else" => return Ok((nodes, Ending::Else)),
            "if" => nodes.push(condition(action.split_off(1), pieces, depth)?),
            "with" => {
                let value = whole(action.split_off(1))?;
                let (then, otherwise) = arms(pieces, depth)?;
                nodes.push(Node::With { value, then, otherwise });
            }
            "range" => {
                let (names, over) = assignment(action.split_off(1))?;
                let (each, otherwise) = arms(pieces, depth)?;
                nodes.push(Node::Range { names, over, each, otherwise });
            }
            _ => {
                let (mut names, value) = assignment(action)?;
                nodes.push(match (names.pop(), names.len()) {
                    (None, _) => Node::Print(value),
                    (Some(name), 0) => Node::Set(name, value),
                    _ => return fault("only range sets two variables"),
                });
            }
        }
    }
    Ok((nodes, Ending::Text))
}

fn condition(tokens: Vec<Token>, pieces: &mut Pieces, depth: usize) -> Result<Node> {
    let condition_of = whole(tokens)?;
    let (then, ending) = block(pieces, depth + 1)?;
    let otherwise = match ending {
        Ending::End => Vec::new(),
        Ending::Else => closed(block(pieces, depth + 1)?)?,
        Ending::ElseIf(tokens) => vec![condition(tokens, pieces, depth + 1)?],
        Ending::Text => return fault("an {{if}} has no {{end}}"),
    };
    Ok(Node::If { condition: condition_of, then, otherwise })
}

fn arms(pieces: &mut Pieces, depth: usize) -> Result<(Vec<Node>, Vec<Node>)> {
    match block(pieces, depth + 1)? {
        (then, Ending::End) => Ok((then, Vec::new())),
        (then, Ending::Else) => Ok((then, closed(block(pieces, depth + 1)?)?)),
        _ => fault("a {{range}} or {{with}} has no {{end}}"),
    }
}

fn closed((nodes, ending): (Vec<Node>, Ending)) -> Result<Vec<Node>> {
    if matches!(ending, Ending::End) { Ok(nodes) } else { fault("an {{else}} has no {{end}}") }
}

/// `$a, $b := value`, or a value alone.
fn assignment(mut tokens: Vec<Token>) -> Result<(Vec<String>, Expr)> {
    let Some(at) = tokens.iter().position(|token| *token == Token::Assign) else {
        return Ok((Vec::new(), whole(tokens)?));
    };
    let value = tokens.split_off(at + 1);
    let mut names = Vec::new();
    for token in tokens {
        match token {
            Token::Word(name) if name.starts_with('$') => names.push(name),
            Token::Sign(',') | Token::Assign => {}
            _ => return fault("only variables such as $name can be set"),
        }
    }
    if names.is_empty() || names.len() > 2 {
        return fault("one or two variables can be set");
    }
    Ok((names, whole(value)?))
}

fn whole(tokens: Vec<Token>) -> Result<Expr> {
    let mut tokens = tokens.into_iter().peekable();
    let value = pipeline(&mut tokens, 0)?;
    match tokens.next() {
        None => Ok(value),
        Some(token) => fault(format!("{token:?} is not expected there")),
    }
}

fn pipeline(tokens: &mut Tokens, depth: usize) -> Result<Expr> {
    if depth > MAX_DEPTH {
        return fault("its parentheses are nested too deeply");
    }
    let mut value = command(tokens, depth)?;
    while tokens.next_if_eq(&Token::Sign('|')).is_some() {
        match command(tokens, depth)? {
            Expr::Call(name, mut arguments) => {
                arguments.push(value);
                value = Expr::Call(name, arguments);
            }
            _ => return fault("after a | comes a function"),
        }
    }
    Ok(value)
}

fn command(tokens: &mut Tokens, depth: usize) -> Result<Expr> {
    if let Some(Token::Word(word)) = tokens.next_if(|token| matches!(token, Token::Word(it) if !it.starts_with('$'))) {
        let mut arguments = Vec::new();
        while tokens.peek().is_some_and(|token| !matches!(token, Token::Sign('|' | ')' | ','))) {
            arguments.push(operand(tokens, depth)?);
        }
        return Ok(Expr::Call(word, arguments));
    }
    let value = operand(tokens, depth)?;
    match value {
        // A method, such as Docker's `.Label "key"`.
        Expr::Field(of, name) if tokens.peek().is_some_and(|token| !matches!(token, Token::Sign('|' | ')' | ','))) => {
            let mut arguments = vec![*of];
            while tokens.peek().is_some_and(|token| !matches!(token, Token::Sign('|' | ')' | ','))) {
                arguments.push(operand(tokens, depth)?);
            }
            Ok(Expr::Call(format!(".{name}"), arguments))
        }
        value => Ok(value),
    }
}

fn operand(tokens: &mut Tokens, depth: usize) -> Result<Expr> {
    let mut value = match tokens.next() {
        Some(Token::Field(name, _)) if name.is_empty() => Expr::Dot,
        Some(Token::Field(name, _)) => Expr::Field(Box::new(Expr::Dot), name),
        Some(Token::Literal(value)) => return Ok(Expr::Literal(value)),
        Some(Token::Word(name)) if name.starts_with('$') => Expr::Variable(name),
        Some(Token::Word(name)) => return Ok(Expr::Call(name, Vec::new())),
        Some(Token::Sign('(')) => {
            let inner = pipeline(tokens, depth + 1)?;
            if tokens.next_if_eq(&Token::Sign(')')).is_none() {
                return fault("a parenthesis is not closed");
            }
            inner
        }
        Some(token) => return fault(format!("{token:?} is not expected there")),
        None => return fault("a value is missing"),
    };
    while let Some(Token::Field(name, _)) = tokens.next_if(|token| matches!(token, Token::Field(_, true))) {
        value = Expr::Field(Box::new(value), name);
    }
    Ok(value)
}

/// Variables in force, and what was printed.
struct Scope {
    variables: Vec<(String, Value)>,
    out: String,
}

impl Scope {
    fn run(&mut self, nodes: &[Node], dot: &Value) -> Result<()> {
        for node in nodes {
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Print(expr) => {
                    let value = self.value(expr, dot)?;
                    self.out.push_str(&print(&value));
                }
                Node::Set(name, expr) => {
                    let value = self.value(expr, dot)?;
                    self.variables.push((name.clone(), value));
                }
                Node::If { condition, then, otherwise } => {
                    let arm = if truth(&self.value(condition, dot)?) { then } else { otherwise };
                    self.inner(arm, dot)?;
                }
                Node::With { value, then, otherwise } => {
                    let value = self.value(value, dot)?;
                    if truth(&value) { self.inner(then, &value)? } else { self.inner(otherwise, dot)? }
                }
                Node::Range { names, over, each, otherwise } => self.range(names, over, (each, otherwise), dot)?,
            }
            if self.out.len() > MAX_OUTPUT {
                return fault("it prints too much");
            }
        }
        Ok(())
    }

    /// Runs with variables of its own.
    fn inner(&mut self, nodes: &[Node], dot: &Value) -> Result<()> {
        let outer = self.variables.len();
        let done = self.run(nodes, dot);
        self.variables.truncate(outer);
        done
    }

    fn range(&mut self, names: &[String], over: &Expr, arms: (&[Node], &[Node]), dot: &Value) -> Result<()> {
        let entries: Vec<(Value, Value)> = match self.value(over, dot)? {
            Value::Array(items) => items.into_iter().enumerate().map(|(at, item)| (at.into(), item)).collect(),
            Value::Object(map) => map.into_iter().map(|(key, item)| (key.into(), item)).collect(),
            Value::Null => Vec::new(),
            other => return fault(format!("range cannot go over {}", print(&other))),
        };
        if entries.is_empty() {
            return self.inner(arms.1, dot);
        }
        for (key, item) in entries {
            let outer = self.variables.len();
            match names {
                [name] => self.variables.push((name.clone(), item.clone())),
                [first, second] => {
                    self.variables.push((first.clone(), key));
                    self.variables.push((second.clone(), item.clone()));
                }
                _ => {}
            }
            let done = self.run(arms.0, &item);
            self.variables.truncate(outer);
            done?;
        }
        Ok(())
    }

    fn value(&self, expr: &Expr, dot: &Value) -> Result<Value> {
        match expr {
            Expr::Dot => Ok(dot.clone()),
            Expr::Literal(value) => Ok(value.clone()),
            Expr::Variable(name) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                found.map_or_else(|| fault(format!("there is no variable {name}")), |(_, value)| Ok(value.clone()))
            }
            Expr::Field(of, name) => field(&self.value(of, dot)?, name),
            Expr::Call(name, arguments) => {
                let arguments = arguments.iter().map(|it| self.value(it, dot)).collect::<Result<Vec<_>>>()?;
                call(name, &arguments)
            }
        }
    }
}

fn field(of: &Value, name: &str) -> Result<Value> {
    match of {
        Value::Object(map) => map.get(name).cloned().map_or_else(
            || {
                let known: Vec<_> = map.keys().take(60).map(|key| format!(".{key}")).collect();
                fault(format!("there is no field .{name}; there are {}", known.join(" ")))
            },
            Ok,
        ),
        Value::Null => Ok(Value::Null),
        other => fault(format!(".{name} is asked of {}, which has no fields", print(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(text: &str) -> Result<String> {
        let data = serde_json::json!({
            "ID": "abc", "N": 3, "Null": null, "Yes": true, "Empty": {},
            "State": { "Pid": 42, "Running": true },
            "Args": ["a", "b"],
            "Ports": { "80/tcp": [{ "HostPort": "8080" }] },
            "Labels": { "k": "v" },
            "Row": { "Labels": "a=b,c=d=e" },
        });
        Template::parse(text)?.render(&data)
    }

    #[test]
    fn what_people_write() {
        #[track_caller]
        fn check(text: &str, want: &str) {
            assert_eq!(render(text).as_deref(), Ok(want), "{text}");
        }
        check("plain", "plain");
        check("{{.ID}} {{ .N }}", "abc 3");
        check("{{.State.Pid}}", "42");
        check("{{json .State}}", r#"{"Pid":42,"Running":true}"#);
        check("{{json .Args}}|{{.Args}}|{{.Labels}}", r#"["a","b"]|[a b]|map[k:v]"#);
        check("{{.Null}}{{.Yes}}", "<nil>true");
        check("{{.ID}}\\t{{.N}}", "abc\t3");
        check(r#"{{join .Args ", "}} {{len .Args}} {{index .Args 1}}"#, "a, b 2 b");
        check(r#"{{index .Labels "k"}}{{index .Labels "none"}}"#, "v");
        check(r#"{{(index .Ports "80/tcp")}}"#, "[map[HostPort:8080]]");
        check(r#"{{(index (index .Ports "80/tcp") 0).HostPort}}"#, "8080");
        check(r"{{range $p, $c := .Ports}}{{$p}}->{{(index $c 0).HostPort}}{{end}}", "80/tcp->8080");
        check("{{range .Args}}<{{.}}>{{end}}", "<a><b>");
        check("{{range $i, $a := .Args}}{{$i}}{{$a}}{{$.ID}} {{end}}", "0aabc 1babc ");
        check("{{range .Empty}}x{{else}}none{{end}}", "none");
        check("{{if .State.Running}}up{{else}}down{{end}}", "up");
        check("{{if .Empty}}a{{else if .Yes}}b{{else}}c{{end}}", "b");
        check("{{if and .Yes (eq .N 3)}}y{{end}}{{if not .Yes}}n{{end}}", "y");
        check("{{eq .State.Pid .N}} {{ne .ID .N}}", "false true");
        check("{{with .State}}{{.Pid}}{{end}}", "42");
        check("{{.ID | upper | printf \"%s!\"}}", "ABC!");
        check("{{$x := .ID}}{{$x}}", "abc");
        check(r#"{{.Row.Label "c"}}{{with .Row}}{{.Label "a"}}{{.Label "x"}}{{end}}"#, "d=eb");
        check("a {{- .ID -}} b", "aabcb");
        check("{{/* nothing */}}x", "x");
        check("{{println .ID}}", "abc\n");
        check(r#"{{"}}"}}"#, "}}");
        check("{{upper .ID}}{{title .ID}}{{lower \"X\"}}", "ABCAbcx");
        check(r#"{{split "a:b" ":"}}"#, "[a b]");
    }

    #[test]
    fn mistakes_are_named() {
        #[track_caller]
        fn check(text: &str, word: &str) {
            let error = render(text).expect_err(text).to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        check("{{.Nmae}}", ".ID");
        check("{{.ID", "}}");
        check("{{}}", "empty");
        check("{{end}}", "closes nothing");
        check("{{if .ID}}", "no {{end}}");
        check("{{range .N}}{{end}}", "range");
        check("{{.ID.X}}", "no fields");
        check("{{frobnicate .ID}}", "frobnicate");
        check("{{index .Args 7}}", "index");
        check("{{$x}}", "$x");
        check("{{.ID | .N}}", "function");
        check("{{.ID .N}}", "no function .ID");
        check("{{(.ID}}", "parenthesis");
        check("{{\"a}}", "}}");
        check("{{.ID ~}}", "'~'");
        check(&"{{if .ID}}".repeat(100), "deeply");
        check(&format!("{{{{{}", "(".repeat(100)), "}}");
        check(&format!("{{{{{}}}}}", "(".repeat(100)), "deeply");
    }
}
