//! A client: one system call at a time, in steps between which anything else may happen.
//!
//! ```text
//!   walk ──cached──▶ walk …                                        (no question)
//!        ──ask again─▶ asked ─▶ computed ─▶ sent ─▶ walk           (no lock)
//!        ──unknown──▶ wants the lock ─▶ asked ─▶ computed ─▶ sent, unlocked ─▶ walk
//!   at the end: stat (attributes believed, or GETATTR), open (held from then on), list (OPENDIR, READDIRPLUS)
//! ```

use crate::kernel::{Cached, DentryId, Kernel, ROOT};
use crate::oracle::{Met, Oracle, Since};
use crate::world::join;
use std::collections::BTreeMap;
use verfs::error::Result;
use verfs::fs::{Attr, Computed, Entry, Epoch, Fs, Listed, Position, Ttl};
use verfs::tree::NodeId;

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// stat(2), or fstat(2) with nothing to walk.
    Stat,
    /// open(2): what is found stays held.
    Open,
    /// opendir(3) and readdir(3) to the end, in pieces of so many names.
    List { most: usize },
}

#[derive(Clone, Debug)]
enum Request {
    Lookup { dir: NodeId, name: String },
    Getattr(NodeId),
    Opendir(NodeId),
    Readdirplus { dir: NodeId, from: Position, most: usize },
}

#[derive(Debug)]
enum Answer {
    Entry(Entry),
    Attr(Attr, Ttl),
    Handle(u64),
    Listed(Vec<Listed>),
}

/// What the answer is used for.
#[derive(Clone, Copy, Debug)]
enum Use {
    /// The name that is not cached; the directory is locked.
    Lookup,
    /// Whether this dentry is right.
    Revalidate {
        dentry: DentryId,
        locked: bool,
    },
    Attributes,
    Handle,
    Listing,
}

#[derive(Debug)]
enum State {
    Walk,
    /// It waits for the lock of the directory, to look a name up.
    WantLock,
    /// It has the lock, and somebody else looks the same name up.
    Locked,
    /// It waits for the lock, to list.
    WantListing {
        from: Position,
    },
    Asked(Request, Use, u64),
    Computed(Computed<Answer>, Request, Use, u64),
    /// With the moment when it was sent.
    Sent(Result<Answer>, Use, u64, Since),
}

/// A system call.
#[derive(Debug)]
struct Call {
    purpose: Purpose,
    since: Since,
    /// Where it began, and how that is called.
    base: String,
    names: Vec<&'static str>,
    /// How many names were walked.
    walked: usize,
    at: DentryId,
    state: State,
    listed: BTreeMap<String, NodeId>,
    /// Which switch a listing is pinned to, and the last view that was served when it was opened.
    handle: u64,
    opened: usize,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Client {
    /// What it has open, and by which path it opened it.
    held: Option<(DentryId, String)>,
    call: Option<Call>,
}

/// What every step of a client works on.
pub struct Scene<'a> {
    pub fs: &'a Fs,
    pub kernel: &'a mut Kernel,
    pub oracle: &'a Oracle,
}

impl Client {
    pub fn is_idle(&self) -> bool {
        self.call.is_none()
    }

    /// Whether an answer about the end of its walk is on its way to it.
    pub fn is_answered(&self) -> bool {
        let answered = |call: &Call| matches!(call.state, State::Sent(..)) && call.walked + 1 >= call.names.len();
        self.call.as_ref().is_some_and(answered)
    }

    /// Begins a call, from the root or from what is held.
    pub fn begin(&mut self, purpose: Purpose, from_held: bool, path: &'static str, scene: &mut Scene<'_>) {
        let (at, base) = self.held.clone().filter(|_| from_held).unwrap_or((ROOT, String::new()));
        // A file has nothing below it.
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty() && scene.kernel.is_dir(at)).collect();
        scene.kernel.hold(at);
        let opened = scene.oracle.last();
        self.call = Some(Call {
            purpose,
            since: scene.oracle.now(),
            base,
            names,
            walked: 0,
            at,
            state: State::Walk,
            listed: BTreeMap::new(),
            handle: 0,
            opened,
        });
    }

    /// Closes what it has open.
    pub fn close(&mut self, kernel: &mut Kernel) {
        if let Some((dentry, _)) = self.held.take() {
            kernel.let_go(dentry);
        }
    }

    /// Goes on by one step. `Ok(false)`: it waits for somebody else.
    pub fn step(&mut self, scene: &mut Scene<'_>) -> std::result::Result<bool, String> {
        let Some(call) = &mut self.call else { return Ok(false) };
        let state = std::mem::replace(&mut call.state, State::Walk);
        let next = call.go_on(state, scene)?;
        match next {
            Next::Step(state) => call.state = state,
            Next::Wait(state) => {
                call.state = state;
                return Ok(false);
            }
            Next::End { hold } => {
                let Some(call) = self.call.take() else { return Ok(true) };
                match hold {
                    true => {
                        self.close(scene.kernel);
                        self.held = Some((call.at, call.path()));
                    }
                    false => scene.kernel.let_go(call.at),
                }
            }
        }
        Ok(true)
    }
}

enum Next {
    Step(State),
    Wait(State),
    End { hold: bool },
}

impl Call {
    fn path(&self) -> String {
        self.names[..self.walked].iter().fold(self.base.clone(), |path, name| join(&path, name))
    }

    fn go_on(&mut self, state: State, scene: &mut Scene<'_>) -> std::result::Result<Next, String> {
        match state {
            State::Walk if self.walked == self.names.len() => self.arrive(scene),
            State::Walk => self.look(scene, false),
            State::WantLock if scene.kernel.lock_shared(self.at) => self.look(scene, true),
            State::Locked => self.look(scene, true),
            State::WantListing { from } if scene.kernel.lock_shared(self.at) => {
                let Purpose::List { most } = self.purpose else { return Err("only a listing lists".to_owned()) };
                let request = Request::Readdirplus { dir: scene.kernel.node(self.at), from, most };
                Ok(ask(request, Use::Listing, scene))
            }
            State::WantLock | State::WantListing { .. } => Ok(Next::Wait(state)),
            State::Asked(request, purpose, version) => {
                let computed = scene.fs.compute(|epoch| answer(scene.fs, epoch, &request));
                Ok(Next::Step(State::Computed(computed, request, purpose, version)))
            }
            State::Computed(computed, request, purpose, version) => {
                let mut sent = None;
                let _unsent = scene.fs.send(computed, |epoch, answer| {
                    note_sent(scene.fs, epoch, &request, &answer);
                    sent = Some(answer);
                });
                Ok(Next::Step(match sent {
                    Some(answer) => State::Sent(answer, purpose, version, scene.oracle.now()),
                    // Another epoch is served by now: it is computed again.
                    None => State::Asked(request, purpose, version),
                }))
            }
            State::Sent(answer, purpose, version, sent) => {
                let answer = answer.map_err(|error| format!("{:?} below {:?}: {error}", self.names, self.base))?;
                self.take(answer, purpose, version, sent, scene)
            }
        }
    }

    /// The next name: what is cached of it, or the question for it.
    fn look(&mut self, scene: &mut Scene<'_>, locked: bool) -> std::result::Result<Next, String> {
        if !scene.kernel.is_dir(self.at) {
            return self.end_walk(Met::NotDir, scene);
        }
        let name = self.names[self.walked];
        let lookup = |dir| Request::Lookup { dir, name: name.to_owned() };
        let dir = scene.kernel.node(self.at);
        match scene.kernel.cached(self.at, name) {
            Cached::Here(child) => {
                if scene.kernel.is_late(child) {
                    self.since.relax();
                }
                self.unlock(locked, scene);
                Ok(self.advance(child, scene))
            }
            Cached::Nothing => {
                self.unlock(locked, scene);
                self.end_walk(Met::Nothing, scene)
            }
            Cached::AskAgain(dentry) => {
                scene.kernel.hold(dentry);
                Ok(ask(lookup(dir), Use::Revalidate { dentry, locked }, scene))
            }
            Cached::Unknown if !locked => Ok(Next::Step(State::WantLock)),
            Cached::Unknown if scene.kernel.begin_lookup(self.at, name) => Ok(ask(lookup(dir), Use::Lookup, scene)),
            Cached::Unknown => Ok(Next::Wait(State::Locked)),
        }
    }

    fn unlock(&self, locked: bool, scene: &mut Scene<'_>) {
        if locked {
            scene.kernel.unlock_shared(self.at);
        }
    }

    fn advance(&mut self, child: DentryId, scene: &mut Scene<'_>) -> Next {
        scene.kernel.hold(child);
        scene.kernel.let_go(self.at);
        self.at = child;
        self.walked += 1;
        Next::Step(State::Walk)
    }

    /// Uses a reply.
    fn take(
        &mut self,
        answer: Answer,
        purpose: Use,
        version: u64,
        sent: Since,
        scene: &mut Scene<'_>,
    ) -> std::result::Result<Next, String> {
        match (answer, purpose) {
            (Answer::Entry(entry), Use::Lookup) => {
                let gone = entry.attr.is_some_and(|attr| !scene.oracle.has(sent, attr.node));
                let found = scene.kernel.use_lookup(self.at, self.names[self.walked], &entry, version, gone);
                self.unlock(true, scene);
                match found {
                    Some(child) => Ok(self.advance(child, scene)),
                    None => self.end_walk(Met::Nothing, scene),
                }
            }
            (Answer::Entry(entry), Use::Revalidate { dentry, locked }) => {
                let right = scene.kernel.use_revalidation(dentry, &entry, version, scene.oracle.is_late(sent));
                let next = match (right, locked) {
                    (true, _) => {
                        self.unlock(locked, scene);
                        self.advance(dentry, scene)
                    }
                    (false, true) => Next::Step(State::Locked),
                    (false, false) => Next::Step(State::WantLock),
                };
                scene.kernel.let_go(dentry);
                Ok(next)
            }
            (Answer::Attr(attr, ttl), Use::Attributes) => {
                scene.kernel.take_attributes(&attr, ttl, version);
                self.end_stat(&attr, scene)
            }
            (Answer::Handle(switch), Use::Handle) => {
                (self.handle, self.opened) = (switch, scene.oracle.last());
                Ok(Next::Step(State::WantListing { from: Position { handle: switch, cookie: 0 } }))
            }
            (Answer::Listed(listed), Use::Listing) => self.take_listed(&listed, version, sent, scene),
            (answer, purpose) => Err(format!("{answer:?} is no answer for {purpose:?}")),
        }
    }

    fn take_listed(
        &mut self,
        listed: &[Listed],
        version: u64,
        sent: Since,
        scene: &mut Scene<'_>,
    ) -> std::result::Result<Next, String> {
        for entry in listed {
            let gone = !scene.oracle.has(sent, entry.attr.node);
            scene.kernel.use_listed(self.at, entry, version, gone);
            let name = String::from_utf8(entry.name.clone()).map_err(|error| error.to_string())?;
            if name != "." && name != ".." && self.listed.insert(name.clone(), entry.attr.node).is_some() {
                return Err(format!("{name:?} is listed twice in {:?}", self.path()));
            }
        }
        self.unlock(true, scene);
        if let Some(last) = listed.last() {
            let switch = self.handle;
            return Ok(Next::Step(State::WantListing { from: Position { handle: switch, cookie: last.cookie } }));
        }
        scene.fs.end_listing(scene.kernel.node(self.at), self.handle);
        scene.oracle.check_listing(self.since, self.opened, &self.path(), &self.listed)?;
        Ok(Next::End { hold: false })
    }

    /// What comes behind the walk.
    fn arrive(&mut self, scene: &mut Scene<'_>) -> std::result::Result<Next, String> {
        let node = scene.kernel.node(self.at);
        match self.purpose {
            Purpose::Open => self.end_walk(Met::Node(node), scene),
            Purpose::Stat => match scene.kernel.attributes(self.at) {
                Some(attr) => self.end_stat(&attr, scene),
                None => Ok(ask(Request::Getattr(node), Use::Attributes, scene)),
            },
            Purpose::List { .. } if scene.kernel.is_dir(self.at) => {
                scene.oracle.check_walk(self.since, &self.base, &self.names, Met::Node(node))?;
                Ok(ask(Request::Opendir(node), Use::Handle, scene))
            }
            Purpose::List { .. } => self.end_walk(Met::Node(node), scene),
        }
    }

    fn end_stat(&mut self, attr: &Attr, scene: &mut Scene<'_>) -> std::result::Result<Next, String> {
        // A held file is that file, whatever its name stands for by now.
        if !self.names.is_empty() {
            scene.oracle.check_walk(self.since, &self.base, &self.names, Met::Node(attr.node))?;
        }
        scene.oracle.check_attributes(self.since, &self.path(), attr)?;
        Ok(Next::End { hold: false })
    }

    fn end_walk(&mut self, met: Met, scene: &mut Scene<'_>) -> std::result::Result<Next, String> {
        if !self.names.is_empty() {
            scene.oracle.check_walk(self.since, &self.base, &self.names, met)?;
        }
        let hold = self.purpose == Purpose::Open && matches!(met, Met::Node(_));
        Ok(Next::End { hold })
    }
}

fn ask(request: Request, purpose: Use, scene: &Scene<'_>) -> Next {
    Next::Step(State::Asked(request, purpose, scene.kernel.version()))
}

/// What the adapter computes for a request.
fn answer(fs: &Fs, epoch: &Epoch, request: &Request) -> Result<Answer> {
    match request {
        Request::Lookup { dir, name } => fs.lookup(epoch, *dir, name.as_bytes()).map(Answer::Entry),
        Request::Getattr(node) => fs.getattr(epoch, *node).map(|(attr, ttl)| Answer::Attr(attr, ttl)),
        Request::Opendir(dir) => fs.begin_listing(epoch, *dir).map(Answer::Handle),
        Request::Readdirplus { dir, from, most } => {
            let wanted =
                verfs::fs::ListRequest { dir: *dir, from: *from, most: *most, listing: verfs::fs::Listing::Plus };
            fs.list(epoch, wanted).map(Answer::Listed)
        }
    }
}

/// What the adapter notes when it sends an answer.
fn note_sent(fs: &Fs, epoch: &Epoch, request: &Request, answer: &Result<Answer>) {
    let note = |attr: &Attr| fs.attrs_sent(epoch, attr.node);
    match answer {
        Ok(Answer::Entry(entry)) => entry.attr.iter().for_each(note),
        Ok(Answer::Attr(attr, _)) => note(attr),
        Ok(Answer::Listed(listed)) => {
            let real = listed.iter().filter(|entry| !matches!(&entry.name[..], b"." | b".."));
            real.for_each(|entry| note(&entry.attr));
        }
        Ok(Answer::Handle(handle)) => {
            if let Request::Opendir(dir) = request {
                fs.listing_begun(*dir, *handle);
            }
        }
        Err(_) => {}
    }
}
