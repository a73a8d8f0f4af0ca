//! The signal that stops a container.

use super::OciError;

const SIGTERM: i32 = 15;
/// The first and the last real-time signal as programs see them: the C library keeps 32 and 33.
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

/// Names of signals 1 to 31 on x86 and arm.
const NAMES: &str = "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP
    TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS";

/// Other names of the same signals.
const ALIASES: [(&str, i32); 3] = [("IOT", 6), ("CLD", 17), ("POLL", 29)];

/// The signal that stops a container: the request's, else the image's STOPSIGNAL, else SIGTERM.
///
/// STOPSIGNAL is a number of 1 to 64, or a name in any case, with or without "SIG", such as "SIGRTMIN+3".
///
/// # Errors
/// [`OciError::Signal`] when there is no such signal.
pub fn stop_signal(container: Option<i32>, image: Option<&str>) -> Result<i32, OciError> {
    if let Some(number) = container {
        return in_range(number).ok_or_else(|| OciError::Signal {
            field: "stop_signal",
            value: number.to_string(),
        });
    }
    match image.map(str::trim).filter(|text| !text.is_empty()) {
        None => Ok(SIGTERM),
        Some(text) => parse(text).ok_or_else(|| OciError::Signal {
            field: "STOPSIGNAL of the image",
            value: text.chars().take(64).collect(),
        }),
    }
}

fn parse(text: &str) -> Option<i32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return in_range(text.parse().ok()?);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(index) = NAMES
        .split_ascii_whitespace()
        .position(|known| known == name)
    {
        return i32::try_from(index + 1).ok();
    }
    if let Some((_, number)) = ALIASES.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        SIGRTMIN + offset(rest, '+')?
    } else {
        SIGRTMAX - offset(name.strip_prefix("RTMAX")?, '-')?
    };
    (SIGRTMIN..=SIGRTMAX).contains(&number).then_some(number)
}

/// "" is 0, "+3" is 3.
fn offset(text: &str, sign: char) -> Option<i32> {
    if text.is_empty() {
        return Some(0);
    }
    let digits = text.strip_prefix(sign)?;
    let short = (1..=2).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    if short { digits.parse().ok() } else { None }
}

fn in_range(number: i32) -> Option<i32> {
    (1..=SIGRTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_wins_then_the_image_then_sigterm() {
        assert_eq!(stop_signal(Some(9), Some("SIGINT")), Ok(9));
        assert_eq!(stop_signal(None, Some("SIGINT")), Ok(2));
        assert_eq!(stop_signal(None, Some("")), Ok(15));
        assert_eq!(stop_signal(None, None), Ok(15));
    }

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("TERM", 15),
            ("sigquit", 3),
            (" 3 ", 3),
            ("64", 64),
            ("SIGSYS", 31),
            ("SIGWINCH", 28),
            ("CLD", 17),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("SIGRTMIN+30", 64),
            ("SIGRTMAX", 64),
            ("SIGRTMAX-14", 50),
        ] {
            assert_eq!(stop_signal(None, Some(text)), Ok(number), "{text}");
        }
        for text in [
            "0", "65", "-1", "+9", "SIG", "SIGFOO", "RTMIN+31", "RTMIN-1", "RTMAX+1", "RTMIN+",
            "1 2",
        ] {
            let error = stop_signal(None, Some(text)).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
        assert!(stop_signal(Some(0), None).is_err());
        assert!(
            stop_signal(Some(65), None)
                .unwrap_err()
                .to_string()
                .contains("stop_signal \"65\"")
        );
    }
}
