package stats

import (
	"fmt"
	"math"
	"slices"
)

// A ClusterTest is the outcome of [Clustered]. N counts clusters.
type ClusterTest struct {
	MeanTest
	Cases     float64
	Resamples int
}

// Clustered tests that a mean over cases is below margin when the cases come in
// clusters: questions of one document, samples of one prompt. Of each cluster
// there are the sum of its cases and how many they are. Clusters are drawn, never
// single cases, and the test is Student's with the distribution of t taken from
// the resamples (the bootstrap-t: Efron and Tibshirani, "An Introduction to the
// Bootstrap", 1993, chapter 12), as such data are skewed: most cases are the
// same, and a few are far apart. With one case a cluster it is the bootstrap by
// case.
//
// p is (1 + the number of resamples at least as extreme) / (1 + resamples), times
// 1 + 4/n: the level of a bootstrap-t is off by an error of the order 1/n (Hall,
// "The Bootstrap and Edgeworth Expansion", 1992, section 3.5), and so much keeps it
// at alpha where it was simulated, from 10 clusters on (TestLevelOfClustered,
// TestLevelAndPowerOfSampledTexts). most
// is the largest value that a case can have: if all clusters have the same mean,
// what speaks for the margin is only that no case beyond was met, and p is how
// likely that would be if just so many cases were at the most as take the mean to
// the margin.
func Clustered(sums, sizes []float64, most, margin, alpha, beta float64, resamples int, g *Generator) (ClusterTest, error) {
	n := len(sums)
	t := ClusterTest{Resamples: resamples}
	t.Plan = Plan{Margin: margin, Alpha: alpha, Beta: beta, N: n}
	if err := checkRates(alpha, beta); err != nil {
		return t, err
	}
	switch {
	case !(margin > 0) || !(most > margin) || math.IsInf(most, 0):
		return t, fmt.Errorf("margin %v is none: it must be positive, and below the most that a case can have, %v", margin, most)
	case n < 2 || len(sizes) != n:
		return t, fmt.Errorf("%d sums of %d clusters: at least 2 are needed", n, len(sizes))
	case float64(resamples+1)*min(alpha/few(n), beta) < 1:
		return t, fmt.Errorf("%d resamples are too few for an alpha of %v", resamples, alpha)
	}
	for i, s := range sums {
		if math.IsNaN(s) || math.IsInf(s, 0) || !(sizes[i] >= 1) || math.IsInf(sizes[i], 0) {
			return t, fmt.Errorf("cluster %d has the sum %v of %v cases: a mean over it would say nothing", i, s, sizes[i])
		}
		t.Cases += sizes[i]
	}
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	t.Mean, t.StandardError = ratio(sums, sizes, all)
	if t.StandardError == 0 {
		t.constant(most)
		return t, nil
	}
	values := make([]float64, resamples)
	drawn := make([]int, n)
	for r := range values {
		for i := range drawn {
			drawn[i] = g.Below(n)
		}
		mean, e := ratio(sums, sizes, drawn)
		switch d := mean - t.Mean; {
		case e > 0:
			values[r] = d / e
		case d != 0:
			values[r] = math.Copysign(math.Inf(1), d)
		}
	}
	slices.Sort(values)
	at := (t.Mean - margin) / t.StandardError
	asLow, asHigh := 0, 0
	for _, v := range values {
		if v <= at {
			asLow++
		}
		if v >= at {
			asHigh++
		}
	}
	t.P = min(1, few(n)*float64(1+asLow)/float64(1+resamples))
	t.Beyond = min(1, few(n)*float64(1+asHigh)/float64(1+resamples))
	t.Passed = t.P <= alpha
	// The bounds are where p would be alpha.
	k := int(float64(alpha/few(n)*float64(1+resamples))) - 1
	low, high := values[k], values[resamples-1-k]
	t.Upper, t.Lower = t.Mean-float64(low*t.StandardError), t.Mean-float64(high*t.StandardError)
	// It passes while the mean is below margin + low*error; a true mean that lies
	// the beta quantile above that is refused with probability 1 - beta. If the
	// resamples say that nothing passes, nothing goes unseen.
	if power := values[int(float64(beta*float64(1+resamples)))-1]; !math.IsInf(low, 0) {
		t.Unseen = math.Max(0, margin+float64(low*t.StandardError)-float64(power*t.StandardError))
	}
	return t, nil
}

// few is what a p of a bootstrap of n clusters is multiplied by.
func few(n int) float64 { return 1 + 4/float64(n) }

// constant is the outcome when all clusters have the same mean.
func (t *ClusterTest) constant(most float64) {
	t.P, t.Beyond = 1, 1
	t.Lower, t.Upper = t.Mean, t.Mean
	if t.Mean < most {
		t.Upper = t.Mean + float64((most-t.Mean)*UpperBound(0, t.N, t.Alpha))
		t.Unseen = t.Mean + float64((most-t.Mean)*Detectable(t.N, 0, t.Beta))
	}
	if t.Mean < t.Margin {
		t.P = AtMost(0, t.N, (t.Margin-t.Mean)/(most-t.Mean))
	} else if t.Mean > t.Margin {
		t.Beyond = AtMost(0, t.N, 1-t.Margin/most)
	}
	t.Passed = t.P <= t.Alpha
}

// ratio returns the mean over all cases of the clusters that were drawn, and its
// standard error, that of a ratio of sums (Cochran, "Sampling Techniques", 1977,
// section 6.3).
func ratio(sums, sizes []float64, drawn []int) (mean, standardError float64) {
	sum, size := 0.0, 0.0
	for _, i := range drawn {
		sum += sums[i]
		size += sizes[i]
	}
	mean = sum / size
	squares := 0.0
	for _, i := range drawn {
		d := sums[i] - float64(mean*sizes[i])
		squares += float64(d * d)
	}
	n := float64(len(drawn))
	return mean, math.Sqrt(float64(squares*n)/(n-1)) / size
}

// A Paired is what became of the labelled cases of one cluster: how many went from
// right to wrong and from wrong to right.
type Paired struct{ Worse, Better, Cases int }

// AccuracyLoss tests that accuracy falls by less than margin from the reference
// to the candidate, on the same cases. There are two ways to show it, and each is
// tested at half of alpha: exactly, that clusters which got worse are rarer than
// margin, whatever got better (for clusters of one size); and by [Clustered], in
// which what got better counts against what got worse. The first needs no
// variation and the second forgives noise that goes both ways.
func AccuracyLoss(clusters []Paired, margin, alpha, beta float64, resamples int, g *Generator) (ClusterTest, error) {
	sums, sizes := make([]float64, len(clusters)), make([]float64, len(clusters))
	worse, equal := 0, true
	for i, c := range clusters {
		if c.Worse < 0 || c.Better < 0 || c.Cases < 1 || c.Worse+c.Better > c.Cases {
			return ClusterTest{}, fmt.Errorf("cluster %d: %+v", i, c)
		}
		sums[i], sizes[i] = float64(c.Worse-c.Better), float64(c.Cases)
		equal = equal && c.Cases == clusters[0].Cases
		if c.Worse > c.Better {
			worse++
		}
	}
	if !equal {
		return Clustered(sums, sizes, 1, margin, alpha, beta, resamples, g)
	}
	t, err := Clustered(sums, sizes, 1, margin, alpha/2, beta, resamples, g)
	if err != nil {
		return t, err
	}
	n := len(clusters)
	t.Alpha = alpha
	t.P = min(1, 2*min(t.P, RateP(worse, n, margin)))
	t.Upper = min(t.Upper, UpperBound(worse, n, alpha/2))
	allowed := -1
	for Keeps(n, allowed+1, margin, alpha/2) {
		allowed++
	}
	if allowed >= 0 {
		t.Unseen = max(t.Unseen, Detectable(n, allowed, beta))
	}
	t.Passed = t.P <= alpha
	return t, nil
}
