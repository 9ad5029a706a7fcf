package main

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A tagOp is one question about a tag, or one change of it.
type tagOp struct {
	tag, do string        // "move", "delete", "read"
	to      digest.Digest // of a move
}

// A tagAnswer is what the server said: what the tag names, "" if there is no
// such tag. Unknown answers were lost, with the server or on the way.
type tagAnswer struct {
	is      digest.Digest
	unknown bool
}

// tagModel is one tag as the specification means it: a variable that somebody
// sets, removes and reads, one after another. A change whose answer was lost
// may have been made, at any time after it was asked for, or never.
var tagModel = (&porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
		by := map[string]int{}
		for _, o := range history {
			tag := o.Input.(tagOp).tag
			i, ok := by[tag]
			if !ok {
				i, by[tag] = len(parts), len(parts)
				parts = append(parts, nil)
			}
			parts[i] = append(parts[i], o)
		}
		return parts
	},
	Init: func() []any { return []any{digest.Digest("")} },
	Step: func(state, input, output any) []any {
		now, op, answer := state.(digest.Digest), input.(tagOp), output.(tagAnswer)
		switch {
		case op.do == "read" && (answer.unknown || answer.is == now):
			return []any{now}
		case op.do == "move" && answer.unknown:
			return []any{now, op.to}
		case op.do == "move":
			return []any{op.to}
		case op.do == "delete" && answer.unknown:
			return []any{now, digest.Digest("")}
		case op.do == "delete" && (now == "") == (answer.is == ""):
			return []any{digest.Digest("")} // and said whether there was one
		}
		return nil
	},
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(input, output any) string {
		return fmt.Sprintf("%+v -> %+v", input, output)
	},
}).ToModel()

// Moves, deletions and reads of the same tags by many clients are as if they
// had happened one after another, each while it was asked for; also when the
// server is killed among them.
func TestTagsAreLinearizable(t *testing.T) {
	const clients, manifests, tags = 6, 5, 3
	lives, life := 3, 700*time.Millisecond
	if soak() {
		lives = 60
	}
	data := filepath.Join(t.TempDir(), "data")
	p := startProcess(t, data, nil).ready()
	bodies := map[digest.Digest][]byte{}
	var names []digest.Digest
	config := []byte("{}")
	if r := ask(p.HTTP, "POST", "/v2/m/blobs/uploads/?digest="+string(digest.FromBytes(config)), config); r.status != http.StatusCreated {
		t.Fatal(r)
	}
	for i := range manifests {
		m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{}, Annotations: map[string]string{"n": fmt.Sprint(i)}}
		m.SchemaVersion = 2
		body, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		d := digest.FromBytes(body)
		bodies[d], names = body, append(names, d)
	}

	start := time.Now()
	var mu sync.Mutex
	var history []porcupine.Operation
	client := func(id int, url string, stop *atomic.Bool) {
		for !stop.Load() {
			op := tagOp{tag: fmt.Sprintf("t%d", rand.IntN(tags)), do: []string{"move", "delete", "read", "read"}[rand.IntN(4)]}
			if op.do == "move" {
				op.to = names[rand.IntN(manifests)]
			}
			path := "/v2/m/manifests/" + op.tag
			called := time.Since(start)
			var r reply
			switch op.do {
			case "move":
				r = ask(url, "PUT", path, bodies[op.to], "Content-Type", ocispec.MediaTypeImageManifest)
			case "delete":
				r = ask(url, "DELETE", path, nil)
			case "read":
				r = ask(url, "HEAD", path, nil)
			}
			o := porcupine.Operation{ClientId: id, Input: op, Call: int64(called), Return: int64(time.Since(start))}
			switch {
			case r.err != nil || r.status >= 500:
				// It may still be made after the client has heard nothing: but
				// no later than the server ended, which is before the next began.
				o.Output = tagAnswer{unknown: true}
				if op.do != "read" {
					o.Return = math.MaxInt64
				}
			case op.do == "move" && r.status == http.StatusCreated:
				o.Output = tagAnswer{is: op.to}
			case op.do == "delete" && r.status == http.StatusAccepted:
				o.Output = tagAnswer{is: "something"}
			case op.do == "read" && r.status == http.StatusOK:
				o.Output = tagAnswer{is: digest.Digest(r.header.Get("Docker-Content-Digest"))}
			case op.do != "move" && r.status == http.StatusNotFound:
				o.Output = tagAnswer{}
			default:
				t.Errorf("%+v: %v", op, r)
				return
			}
			mu.Lock()
			history = append(history, o)
			mu.Unlock()
			if r.err != nil {
				return
			}
		}
	}
	for n := range lives {
		if n > 0 {
			p = startProcess(t, data, nil).ready()
		}
		var stop atomic.Bool
		var all sync.WaitGroup
		for i := range clients {
			all.Go(func() { client(n*clients+i, p.HTTP, &stop) })
		}
		time.Sleep(life)
		if n < lives-1 {
			p.kill()
		}
		stop.Store(true)
		all.Wait()
	}
	p.stop()
	p.fsck()

	lost := 0
	for _, o := range history {
		if o.Output.(tagAnswer).unknown {
			lost++
		}
	}
	t.Logf("%d operations, %d of them unanswered", len(history), lost)
	if len(history) < 300 || lost == 0 {
		t.Errorf("%d operations and %d unanswered ones show nothing", len(history), lost)
	}
	if got := porcupine.CheckOperationsTimeout(tagModel, history, 2*time.Minute); got != porcupine.Ok {
		t.Errorf("the history of the tags is %s: there is no order in which it makes sense", got)
	}
	// A history in which one reader is told something that was not so is found out.
	for i, o := range history {
		if a := o.Output.(tagAnswer); o.Input.(tagOp).do == "read" && !a.unknown {
			wrong := append([]porcupine.Operation(nil), history...)
			wrong[i].Output = tagAnswer{is: "sha256:what nobody pushed"}
			if got := porcupine.CheckOperationsTimeout(tagModel, wrong, time.Minute); got != porcupine.Illegal {
				t.Errorf("a wrong read is %s: the check shows nothing", got)
			}
			return
		}
	}
}
