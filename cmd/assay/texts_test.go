package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/assay-dev/assay/conformance/target/targettest"
)

var talkers sync.Map // of *targettest.OpenAI by work directory and variable

// talk is openai NAME [FAULT]: it starts the fake OpenAI server, of which every
// answer is wrong in that way, and sets the variable NAME to its address.
func talk(ts *testscript.TestScript, neg bool, args []string) {
	s := targettest.NewOpenAI(storyT{ts: ts})
	if len(args) > 1 {
		s.SetMisbehave(func(int) string { return args[1] })
	}
	talkers.Store(ts.Getenv("WORK")+args[0], s)
	ts.Setenv(args[0], s.URL)
}

// silence is stop-openai NAME: nobody listens there any more.
func silence(ts *testscript.TestScript, neg bool, args []string) {
	s, ok := talkers.Load(ts.Getenv("WORK") + args[0])
	if !ok {
		ts.Fatalf("no server %s is running", args[0])
	}
	s.(*targettest.OpenAI).Close()
}

// talkWrong is openai-fault FAULT STATUS PATTERN: it replays the suite $SUITE, or
// help/suite:1, against a server of which every 20th answer to a case is made
// wrong. The replay must end with the status and print the pattern, and REPLAY is
// set to it.
func talkWrong(ts *testscript.TestScript, neg bool, args []string) {
	s := targettest.NewOpenAI(storyT{ts: ts})
	var wrong atomic.Int64
	s.SetMisbehave(func(n int) string {
		// The first dozen are questions of the pre-flight.
		if n > 12 && n%20 == 0 {
			wrong.Add(1)
			return args[0]
		}
		return ""
	})
	suite := ts.Getenv("SUITE")
	if suite == "" {
		suite = "help/suite:1"
	}
	protocol := "openai-chat"
	if p := ts.Getenv("PROTOCOL"); p != "" {
		protocol = p
	}
	ts.Check(ts.Exec("assay", "env", "register", args[0], "--protocol", protocol, "--url", s.URL+"/v1", "--model", "parrot", "--version", "parrot-2026-03-01", "--local"))
	exits(ts, false, []string{args[1], "assay", "replay", "help/assistant:2", "--suite", suite, "--env", args[0]})
	if wrong.Load() == 0 {
		ts.Fatalf("no answer was made wrong")
	}
	out := ts.ReadFile("stdout")
	if !regexp.MustCompile(args[2]).MatchString(out) {
		ts.Fatalf("%q is not in:\n%s", args[2], out)
	}
	if m := regexp.MustCompile(`replay (\S+@sha256:\S+)`).FindStringSubmatch(out); m != nil {
		ts.Setenv("REPLAY", m[1])
	}
}

// inputs FILE N writes N cases that ask for an embedding.
func inputs(ts *testscript.TestScript, neg bool, args []string) {
	var n int
	fmt.Sscan(args[1], &n)
	rng := rand.New(rand.NewPCG(1, 2))
	var b strings.Builder
	for i := range n {
		said := make([]byte, 12)
		for k := range said {
			said[k] = byte('a' + rng.IntN(26))
		}
		fmt.Fprintf(&b, `{"id":"e-%03d","request":{"input":%q},"slice":{"odd":"%v"}}`+"\n", i, said, i%2 == 1)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(b.String()), 0o644))
}

// questions FILE N [MEMBERS] writes N cases of chats, with further members in
// their requests; without any they ask for log probabilities.
func questions(ts *testscript.TestScript, neg bool, args []string) {
	var n int
	fmt.Sscan(args[1], &n)
	more := `"logprobs":true,"top_logprobs":2`
	if len(args) > 2 {
		more = args[2]
	}
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"id":"q-%03d","request":{"messages":[{"role":"user","content":"number %d speaks"}],%s},"slice":{"odd":"%v"}}`+"\n", i, i, more, i%2 == 1)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(b.String()), 0o644))
}
