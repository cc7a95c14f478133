//! Names that read like a Korean ticket office's; all of them invented.

use rand_chacha::ChaCha8Rng;

use super::ids::below;

/// What kind of show it is; decides its hall, length and prices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Genre {
    Musical,
    Concert,
    Classic,
    Play,
    Festival,
}

impl Genre {
    /// Grades with their prices in won, dearest first.
    pub fn grades(self) -> &'static [(&'static str, i64)] {
        match self {
            Self::Musical => &[
                ("VIP", 170_000),
                ("R", 140_000),
                ("S", 110_000),
                ("A", 80_000),
            ],
            Self::Concert => &[
                ("VIP", 198_000),
                ("R", 165_000),
                ("S", 154_000),
                ("A", 121_000),
            ],
            Self::Classic => &[("R", 150_000), ("S", 120_000), ("A", 90_000), ("B", 50_000)],
            Self::Play => &[("R", 77_000), ("S", 66_000), ("A", 55_000), ("B", 44_000)],
            Self::Festival => &[
                ("VIP", 220_000),
                ("R", 176_000),
                ("S", 132_000),
                ("A", 99_000),
            ],
        }
    }

    pub fn runtime_minutes(self) -> i32 {
        match self {
            Self::Musical => 165,
            Self::Concert => 150,
            Self::Classic => 110,
            Self::Play => 100,
            Self::Festival => 300,
        }
    }

    pub fn age_rating(self) -> &'static str {
        match self {
            Self::Musical => "8세 이상 관람가",
            Self::Concert | Self::Festival => "만 7세 이상",
            Self::Classic => "초등학생 이상",
            Self::Play => "만 13세 이상",
        }
    }
}

/// The shows of a numbered seed, over and over with further seasons.
pub const SHOWS: &[(Genre, &str)] = &[
    (Genre::Musical, "뮤지컬 〈달의 정원〉"),
    (Genre::Concert, "새벽소년 2집 발매 콘서트 〈파도〉"),
    (Genre::Classic, "한강필하모닉 제214회 정기연주회"),
    (Genre::Play, "연극 〈마지막 우체국〉"),
    (Genre::Musical, "뮤지컬 〈경성 블루스〉"),
    (Genre::Concert, "유하린 전국투어 〈온기〉"),
    (Genre::Festival, "서울 여름밤 재즈 페스타"),
    (Genre::Classic, "정서윤 피아노 리사이틀"),
    (Genre::Play, "연극 〈비 오는 날의 세탁소〉"),
    (Genre::Musical, "뮤지컬 〈바람의 언덕〉"),
    (Genre::Concert, "NOVA9 월드투어 앙코르"),
    (Genre::Classic, "실내악의 밤: 사계"),
    (Genre::Musical, "가족 뮤지컬 〈고래섬의 비밀〉"),
    (Genre::Play, "연극 〈열두 번째 손님〉"),
    (Genre::Concert, "밴드 여백 단독공연 〈여름의 끝〉"),
    (Genre::Festival, "부산 바다 록 페스티벌"),
];

/// Halls of a numbered seed.
pub const HALLS: &[(&str, &str)] = &[
    ("한빛아트센터 대극장", "서울특별시 중구 세종대로 1010"),
    ("남산 달빛홀", "서울특별시 용산구 소월로 2020"),
    ("해오름 오페라하우스", "부산광역시 해운대구 센텀로 303"),
    ("빛고을 시민극장", "광주광역시 서구 상무대로 404"),
    ("팔공 콘서트하우스", "대구광역시 북구 옥산로 505"),
];

const FAMILY: &[&str] = &[
    "김", "이", "박", "최", "정", "강", "조", "윤", "장", "임", "한", "오", "서", "신", "권", "황",
    "안", "송", "류", "홍",
];
const GIVEN: &[&str] = &[
    "민준", "서연", "도윤", "하은", "시우", "지유", "주원", "서윤", "하준", "지아", "예준", "수아",
    "지호", "하린", "건우", "다은", "우진", "나은", "선우", "채원", "연우", "유나", "정우", "가은",
    "승현", "예린", "준서", "소율", "현우", "지안",
];

/// What somebody is called.
pub fn person(rng: &mut ChaCha8Rng) -> String {
    format!(
        "{}{}",
        FAMILY[below(rng, FAMILY.len())],
        GIVEN[below(rng, GIVEN.len())]
    )
}
