package stats

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// A BootstrapInterval is a confidence interval of a statistic of cases.
type BootstrapInterval struct {
	Estimate     float64 // of the cases as they are
	Lower, Upper float64 // each with confidence 1 - alpha
	Cases        int
	Resamples    int
}

// Bootstrap returns a confidence interval of any statistic of n cases, for
// those that have no closed form, bias-corrected and accelerated (BCa: Efron,
// Journal of the American Statistical Association 82, 1987). Cases are drawn,
// never single answers: whatever repeats a case has goes with it. statistic
// computes the number from the indices of the cases that were drawn; it must
// be deterministic.
//
// If the statistic is the same for all resamples, the interval is that number;
// if the estimate lies outside all of them, there is none.
func Bootstrap(n, resamples int, alpha float64, g *Generator, statistic func(cases []int) float64) (BootstrapInterval, error) {
	b := BootstrapInterval{Cases: n, Resamples: resamples}
	if n < 2 || resamples < 100 || !(alpha > 0 && alpha < 0.5) {
		return b, fmt.Errorf("no bootstrap of %d cases with %d resamples and alpha %v: at least 2 cases, 100 resamples and an alpha below 0.5 are needed", n, resamples, alpha)
	}
	drawn := make([]int, n)
	for i := range drawn {
		drawn[i] = i
	}
	b.Estimate = statistic(drawn)
	// The jackknife: each case left out once.
	without := make([]float64, n)
	less := make([]int, 0, n)
	for i := range without {
		less = less[:0]
		for j := range n {
			if j != i {
				less = append(less, j)
			}
		}
		without[i] = statistic(less)
	}
	values := make([]float64, resamples)
	for r := range values {
		for i := range drawn {
			drawn[i] = g.Below(n)
		}
		values[r] = statistic(drawn)
	}
	for _, v := range slices.Concat(values, without, []float64{b.Estimate}) {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return b, errors.New("the statistic is not finite for some of the resamples")
		}
	}
	var err error
	b.Lower, b.Upper, err = accelerated(b.Estimate, values, without, alpha)
	return b, err
}

// accelerated returns the BCa interval. It sorts values.
func accelerated(estimate float64, values, without []float64, alpha float64) (lower, upper float64, err error) {
	slices.Sort(values)
	if values[0] == values[len(values)-1] && values[0] == estimate {
		return estimate, estimate, nil
	}
	// The share of resamples below the estimate, ties by half.
	share := 0.0
	for _, v := range values {
		switch {
		case v < estimate:
			share++
		case v == estimate:
			share += 0.5
		}
	}
	share /= float64(len(values))
	if share == 0 || share == 1 {
		return 0, 0, errors.New("the estimate lies outside all resamples: the statistic is not one that can be bootstrapped")
	}
	bias := normalQuantile(share)
	mean := 0.0
	for _, v := range without {
		mean += v
	}
	mean /= float64(len(without))
	cubes, squares := 0.0, 0.0
	for _, v := range without {
		d := mean - v
		square := float64(d * d)
		squares += square
		cubes += float64(square * d)
	}
	acceleration := 0.0
	if squares > 0 {
		acceleration = cubes / float64(6*float64(squares*math.Sqrt(squares)))
	}
	at := func(p float64) float64 {
		z := bias + normalQuantile(p)
		return quantile(values, normal(bias+z/(1-float64(acceleration*z))))
	}
	return at(alpha), at(1 - alpha), nil
}

// quantile interpolates between the sorted values.
func quantile(sorted []float64, p float64) float64 {
	at := float64(p * float64(len(sorted)-1))
	i := int(at)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[i] + float64((at-float64(i))*(sorted[i+1]-sorted[i]))
}
