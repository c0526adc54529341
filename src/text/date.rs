//! Dates as prompts write them (step 4 in the life of a request), in UTC.

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// 1970-01-01 was a Thursday.
const WEEKDAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Days since 1970-01-01.
pub fn today() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    (now.as_secs() / 86_400) as i64
}

/// A date in one of the formats that templates use; an unknown letter is given back.
pub fn format(format: &str, days: i64) -> Result<String, char> {
    // Civil date from days, after Howard Hinnant's "chrono-compatible low-level date algorithms".
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let month_name = MONTHS[(month - 1) as usize];

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('A') => out += WEEKDAYS[days.rem_euclid(7) as usize],
            Some('d') => out += &format!("{day:02}"),
            Some('m') => out += &format!("{month:02}"),
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('b') => out += &month_name[..3],
            Some('B') => out += month_name,
            Some('%') => out.push('%'),
            other => return Err(other.unwrap_or(' ')),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_their_names() {
        assert_eq!(format("%A, %B, %d, %Y", 0).unwrap(), "Thursday, January, 01, 1970");
        assert_eq!(format("%B %d, %Y", 20_687).unwrap(), "August 22, 2026");
        assert_eq!(format("%A", 20_687).unwrap(), "Saturday");
        assert_eq!(format("%d %b %y %m %%", 11_016).unwrap(), "29 Feb 00 02 %");
        assert_eq!(format("%Q", 0), Err('Q'));
    }
}
