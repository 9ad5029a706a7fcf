package compare

import (
	"fmt"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// A Timing is when the parts of an answer came. Intended is when the question
// should have been sent: a client that waits for a slow answer before it sends
// the next question hides the wait from all questions behind it ("coordinated
// omission"), so delays are counted from there.
type Timing struct {
	Intended, First, Last time.Time
	Tokens                int // 0 if the answer has none
}

// A Latency collects delays, with three significant digits.
type Latency struct {
	First    *hdrhistogram.Histogram // to the first byte or token (TTFT), in microseconds
	PerToken *hdrhistogram.Histogram // between tokens after the first (TPOT), in microseconds
	Whole    *hdrhistogram.Histogram // to the end, in microseconds

	Outside int // answers whose times are in the wrong order, or over an hour: counted, never dropped unseen
}

// longest is the longest delay that is kept apart from longer ones.
const longest = time.Hour

// NewLatency makes an empty collection.
func NewLatency() *Latency {
	make := func() *hdrhistogram.Histogram { return hdrhistogram.New(1, longest.Microseconds(), 3) }
	return &Latency{make(), make(), make(), 0}
}

// Add takes up an answer.
func (l *Latency) Add(t Timing) {
	if t.First.Before(t.Intended) || t.Last.Before(t.First) || t.Last.Sub(t.Intended) > longest {
		l.Outside++
		return
	}
	record := func(h *hdrhistogram.Histogram, d time.Duration) {
		if err := h.RecordValue(max(1, d.Microseconds())); err != nil {
			l.Outside++
		}
	}
	record(l.First, t.First.Sub(t.Intended))
	record(l.Whole, t.Last.Sub(t.Intended))
	if t.Tokens > 1 {
		record(l.PerToken, t.Last.Sub(t.First)/time.Duration(t.Tokens-1))
	}
}

// Quantiles renders the usual ones, for people.
func Quantiles(h *hdrhistogram.Histogram) string {
	if h.TotalCount() == 0 {
		return "nothing measured"
	}
	at := func(q float64) time.Duration { return time.Duration(h.ValueAtQuantile(q)) * time.Microsecond }
	return fmt.Sprintf("p50 %v, p90 %v, p99 %v, max %v of %d", at(50), at(90), at(99), at(100), h.TotalCount())
}
